"""Split a vision transformer by class over several devices, and run it there (ED-ViT).

"Efficient Partitioning Vision Transformer on Edge Devices for Distributed Inference" (2024),
arXiv 2410.11650. Names are imported when first used: the worker's side never needs torch.
"""
