"""Names of the files of a run that the pictures are drawn from, and of the picture itself."""

METRICS = "metrics.csv"
LAYERWISE_RATES = "layerwise_rates.csv"
CURVES = "curves.png"
