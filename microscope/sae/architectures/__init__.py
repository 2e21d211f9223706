"""What an SAE of each architecture computes: one file each, named in :mod:`microscope.params.architectures`."""
