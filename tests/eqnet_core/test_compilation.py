"""Bit-widths and forms are values, not branches: a compiled supernet serves all of them with one graph."""

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounter

from eqnet_core.space import FORMS
from eqnet_core.supernet import Supernet
from eqnet_core.training.subnets import sandwich


# torch 2.11 warns of what it does itself while it traces.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_no_subnet_makes_a_compiled_supernet_compile_again(supernet: Supernet) -> None:
    compiles = CompileCounter()
    forward = torch.compile(supernet.model, backend=compiles, dynamic=False)
    images = torch.randn(2, *supernet.input.shape)
    generator = np.random.default_rng(0)
    supernet.train()
    try:
        supernet.activate(supernet.space.uniform(FORMS[0], 8))
        forward(images)
        compiled = compiles.frame_count
        assert compiled > 0
        outputs = []
        for form in FORMS:
            supernet.activate(supernet.space.uniform(form, 2))
            outputs.append(forward(images))
        for subnet in sandwich(supernet.space, generator):
            supernet.activate(subnet)
            torch.autograd.backward(forward(images).sum())
        assert compiles.frame_count == compiled
        assert not torch.equal(outputs[0], outputs[4])
    finally:
        supernet.eval()
        supernet.zero_grad(set_to_none=True)
        torch.compiler.reset()
