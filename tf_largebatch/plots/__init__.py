"""Drawing: curves, heat maps of layer-wise rates, and adversarial images, with Matplotlib."""
