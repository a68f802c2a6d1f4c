"""Backbones that Model Garden lacks, built from tf_keras layers."""
