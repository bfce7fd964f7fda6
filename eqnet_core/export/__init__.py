"""A subnet as files: ONNX, packed state-dict, encodings, and the proof that they compute what was simulated.

Nothing is imported here: what needs torch (`onnx_exact`, `module`, `proof`) loads only where it is used.
"""
