"""Where weights came from: the record of a training run, written, read and followed.

No torch here: what computes lives in `whence_server.training`.
"""
