"""Files in ONNX Runtime on the CPU, the way proofs run them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from eqnet_core.errors import ProofError

_BATCH = 32


def batches(images: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    """`images` [N, ...] in parts of at most 32."""
    for start in range(0, len(images), _BATCH):
        yield images[start : start + _BATCH]


def load_model(onnx_bytes: bytes) -> onnx.ModelProto:
    """The file, checked against the standard.

    Raises:
        ProofError: it is not valid ONNX.
    """
    try:
        model = onnx.load_from_string(onnx_bytes)
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf's and ONNX's exceptions share no base that is public
        raise ProofError(f"the export is not a valid ONNX file: {error}") from error
    return model


def exposed_values(model: onnx.ModelProto, names: Iterable[str], type: int = onnx.TensorProto.FLOAT) -> bytes:
    """The file with the values `names`, of the ONNX element type `type`, as outputs too."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    present = {value.name for value in (*model.graph.output, *model.graph.input)}
    for name in names:
        if name not in present:
            result.graph.output.append(onnx.helper.make_tensor_value_info(name, type, None))
    return bytes(result.SerializeToString())


def open_session(onnx_bytes: bytes, optimize: bool, threads: int) -> onnxruntime.InferenceSession:
    """A session on the CPU, with the optimiser at its default or off.

    Raises:
        ProofError: ONNX Runtime does not load the file.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.use_deterministic_compute = True
    options.log_severity_level = 3
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(onnx_bytes, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own exceptions have no common base
        raise ProofError(f"ONNX Runtime does not load the export: {error}") from error


def run_batch(
    session: onnxruntime.InferenceSession, images: NDArray[np.float32], names: list[str]
) -> list[NDArray[Any]]:
    """The values `names` for one batch.

    Raises:
        ProofError: ONNX Runtime cannot run the file.
    """
    # the first layer's input is the graph's, which ONNX Runtime does not hand back
    wanted = [name for name in names if name != "image"]
    try:
        arrays = dict(zip(wanted, session.run(wanted, {"image": images}), strict=True))
    except Exception as error:
        raise ProofError(f"ONNX Runtime cannot run the export: {error}") from error
    return [images if name == "image" else arrays[name] for name in names]
