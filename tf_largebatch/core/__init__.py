"""The mathematics: arrays in, arrays out, written once with `keras.ops` for both Keras worlds."""
