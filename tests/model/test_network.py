"""The network, and its start from one trained on other structures."""

from __future__ import annotations

import pytest
import torch

from multipass.model.network import MultiPassUNet, transfer

FILTERS = (8, 8, 16, 16)


def small(classes: int, seed: int = 0) -> MultiPassUNet:
    torch.manual_seed(seed)
    return MultiPassUNet(classes, FILTERS).eval()


def inputs(classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(9)
    return torch.rand(1, 1, 32, 32, 24), torch.rand(1, classes, 32, 32, 24)


def test_logits_have_the_windows_shape():
    image, context = inputs(3)
    assert small(3)(image, context).shape == (1, 3, 32, 32, 24)


def test_default_network_has_five_and_a_half_million_weights():
    assert sum(p.numel() for p in MultiPassUNet(6).parameters()) == pytest.approx(5.5e6, rel=0.01)


@torch.no_grad()
@pytest.mark.parametrize("classes", [3, 20])
@pytest.mark.parametrize("with_context", [True, False])
def test_class_by_class_as_at_once(classes, with_context):
    network = small(classes)
    image, context = inputs(classes)
    context = torch.softmax(context * with_context, 1) * with_context
    at_once = torch.softmax(network(image, context), 1)[0]
    found = network.look(image, context[0].__getitem__ if with_context else None)
    for c in range(classes):
        torch.testing.assert_close(found(c), at_once[c], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_transfer_to_the_same_structures_keeps_every_logit():
    trained, other = small(3), small(3, seed=1)
    transfer(other, trained, [0, 1, 2])
    torch.testing.assert_close(other(*inputs(3)), trained(*inputs(3)))


@torch.no_grad()
def test_transfer_moves_structures_and_starts_new_ones_from_zero():
    trained, other = small(3), small(4, seed=1)
    transfer(other, trained, [0, 2, -1, 1])
    image, context = inputs(3)
    moved = context[:, [0, 2, 0, 1]]
    new = other(image, moved)
    torch.testing.assert_close(new[:, [0, 3, 1]], trained(image, context), atol=1e-4, rtol=0)
    assert (new[:, 2] == 0).all()


def test_transfer_refuses_another_backbone():
    with pytest.raises(ValueError, match="filters"):
        transfer(small(3), MultiPassUNet(3, (8, 16, 16, 16)), [0, 1, 2])


@torch.no_grad()
def test_each_pass_has_its_own_norms_and_later_passes_share_the_last():
    torch.manual_seed(0)
    network = MultiPassUNet(3, FILTERS, scales=2).eval()
    image, context = inputs(3)
    same = network(image, context, 0)
    assert torch.equal(same, network(image, context, 1))
    for name, weight in network.named_parameters():
        if "norm" in name and name.endswith("weight"):
            weight[1] *= 1.5
    assert torch.equal(network(image, context, 0), same)
    assert not torch.equal(network(image, context, 1), same)
    assert torch.equal(network(image, context, 1), network(image, context, 2))


@torch.no_grad()
def test_one_scale_is_the_network_without_and_starts_one_with_more():
    plain, fresh = small(3), MultiPassUNet(3, FILTERS, scales=3, extra=1)
    transfer(fresh, plain, [0, 1, 2])
    image, context = inputs(3)
    for index in range(3):
        found = fresh(image, context, index)
        assert torch.allclose(found[:, :3], plain(image, context), atol=1e-5)
        assert not found[:, 3].any()


@torch.no_grad()
def test_classes_of_training_alone_are_background():
    torch.manual_seed(1)
    network = MultiPassUNet(3, FILTERS, extra=2).eval()
    image, context = inputs(3)
    logits = network(image, context)
    assert logits.shape[1] == 5
    maps = torch.softmax(network.merged(logits), 1)[0]
    all_classes = torch.softmax(logits, 1)[0]
    assert torch.allclose(maps[0], all_classes[0] + all_classes[3:].sum(0), atol=1e-5)
    assert torch.allclose(maps[1:], all_classes[1:3], atol=1e-5)
    found = network.look(image, context[0].__getitem__)
    assert torch.allclose(torch.stack([found(c) for c in range(3)]), maps, atol=1e-5)
