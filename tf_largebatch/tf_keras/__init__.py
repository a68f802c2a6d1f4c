"""CLARS, LARS and the layer rules for tf_keras; Model Garden is not needed."""
