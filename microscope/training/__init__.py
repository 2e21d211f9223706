"""Train sparse autoencoders on recordings."""

from microscope.training.trainer import train, train_all, train_sae

__all__ = ["train", "train_all", "train_sae"]
