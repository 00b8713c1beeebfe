"""The pretended GPU complains where a real one does, and about nothing else."""

import pytest
import torch
from torch import nn

from tests.pretend_cuda import pretend_cuda


@pytest.fixture
def gpu():
    with pretend_cuda() as mode:
        yield mode


def test_what_is_moved_stays_on_the_gpu(gpu):
    a = torch.randn(3, 4, device="cuda")
    layer = nn.Linear(4, 5).to("cuda")
    results = [
        a,
        a.T,
        a[0],
        a[torch.tensor([0])],
        a.detach(),
        a.half(),
        nn.Parameter(a),
        torch.zeros_like(a),
        a.new_zeros(3),
        a + torch.tensor(1.0),
        torch.ones(2).to(a),
        torch.ones(2).cuda(),
        torch.arange(3, device=a.device),
        layer.weight,
        layer(a),
    ]
    assert all(x.device == torch.device("cuda", 0) and x.is_cuda for x in results)
    layer(a).sum().backward()
    torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9).step()
    layer.load_state_dict({name: value.cpu() for name, value in layer.state_dict().items()})
    assert layer.weight.grad.is_cuda and layer.weight.is_cuda


def test_what_comes_back_is_on_the_cpu(gpu):
    a = torch.ones(3, device="cuda")
    assert not a.cpu().is_cuda and not a.to("cpu", torch.float64).is_cuda and not torch.ones(3).is_cuda
    assert a.cpu().numpy().sum() == 3 and float(a.sum()) == 3 and a.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    "mixed",
    [
        lambda a, b: a + b,
        lambda a, b: a @ b,
        lambda a, b: torch.cat([a, b]),
        lambda a, b: nn.functional.mse_loss(a, b),
        lambda a, b: torch.where(b > 0, a, 0 * a),
        lambda a, b: nn.Linear(3, 2)(a),
    ],
)
def test_both_devices_in_one_operation(gpu, mixed):
    with pytest.raises(RuntimeError, match="same device"):
        mixed(torch.ones(3, device="cuda"), torch.ones(3))


def test_indices_of_the_gpu_in_a_tensor_of_the_cpu(gpu):
    with pytest.raises(RuntimeError, match="indices"):
        torch.ones(3)[torch.tensor([0], device="cuda")]


def test_numpy_of_the_gpu(gpu):
    with pytest.raises(TypeError, match="Tensor.cpu"):
        torch.ones(3, device="cuda").numpy()
