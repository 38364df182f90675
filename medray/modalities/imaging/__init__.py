"""Imaging: DICOM, NIfTI, PNG/JPEG/TIFF/BMP, MedMNIST .npz and MNIST idx, as 2D images or 3D volumes."""
