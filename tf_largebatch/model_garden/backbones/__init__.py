"""Backbones that the host lacks, of tf_keras layers."""
