"""The named layers of every network, read and replaced by plain torch hooks.

A layer is a whole activation: all channels of a convolution, hence every regular field with all its eight channels (one
of them alone would break equivariance). Networks are not changed: a layer is an entry of the batch, the output or some
input channels of a module, or an entry of the dictionary that a module returns.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d4lens.lensing import d4, to_image_plane, to_source_plane, unchecked
from d4lens.models.baselines import D4CNN, ResNet
from d4lens.models.batch import LensBatch, turned_fit
from d4lens.models.engine import _SEEN
from d4lens.models.pinn import D4LensPINN, D4LensPINNPublished

Edit = Callable[[Tensor], Tensor]
"""Takes an activation and returns what the network goes on with; the same object where nothing changes."""


@dataclass(frozen=True)
class Layer:
    """One named activation, (B, C, n, n), or (B, C) past the last map; of the batch (B, N, N), `fit` (B, 7).

    Attributes
    ----------
    name : str
        Its name in the studies' records.
    part : str
        input, unet, physics, head, invariants, trunk or logits.
    kind : str
        How it should turn with the image: `scalar`, `vector` (two components), `regular` fields, `fit` parameters,
        `invariant`, or `plain`, of which nothing is promised; a plain map is compared as scalars.
    place : str
        Where it is met: an entry of the `batch`, the `output` or `input` of `module`, or `key` of the dictionary that it
        returns.
    module, key : str
        See `place`.
    channels : tuple of int, optional
        The first and the one past the last, where it is not all of them.
    untouched : tuple of str
        Modules upstream of it or beside it, whose outputs a patch here cannot change, its own before the patch among
        them.
    """

    name: str
    part: str
    kind: Literal["scalar", "vector", "regular", "fit", "invariant", "plain"]
    place: Literal["batch", "output", "input", "dict"]
    module: str = ""
    key: str = ""
    channels: tuple[int, int] | None = None
    untouched: tuple[str, ...] = ()


def layers_of(network: nn.Module) -> list[Layer]:
    """List the layers of a network, from the input to the logits.

    Parameters
    ----------
    network : nn.Module
        A network of this project.

    Returns
    -------
    list of Layer
        The layers.

    Raises
    ------
    TypeError
        For any other network.
    """
    if isinstance(network, ResNet):
        names = [("stem", "maxpool"), *((f"layer{i}",) * 2 for i in range(1, 5)), ("pool", "global_pool")]
        trunk = _chain(
            "trunk", "plain", [(name, f"net.{m}") for name, m in names], ("net.conv1", "net.bn1", "net.act1")
        )
    elif isinstance(network, D4CNN):
        blocks = [(f"block.{i}", f"norms.{i}") for i in range(len(network.norms))]
        trunk = _chain("trunk", "regular", blocks, ("lift", *(f"convs.{i}" for i in range(len(network.convs)))))
        # the convolutions further on do depend on an earlier block
        trunk = [replace(t, untouched=("lift", *t.untouched[1 + len(network.convs) :])) for t in trunk]
        trunk.append(Layer("summary", "trunk", "invariant", "input", "classify", untouched=trunk[-1].untouched))
    elif isinstance(network, D4LensPINN | D4LensPINNPublished):
        trunk = _of_pinn(network)
    else:
        raise TypeError(f"{type(network).__name__} has no named layers")
    entries = [Layer(name, "input", "fit" if name == "fit" else "scalar", "batch", key=name) for name in _read(network)]
    return [*entries, *trunk, Layer("logits", "logits", "plain", "dict", key="logits")]


def _chain(
    part: str, kind: Any, modules: Sequence[tuple[str, str]], before: tuple[str, ...], beside: tuple[str, ...] = ()
) -> list[Layer]:
    """Layers (name, module) that follow one another; each leaves those before it, and its own output, as they were."""
    upto = [before + tuple(m for _, m in modules[: i + 1]) for i in range(len(modules))]
    return [
        Layer(name, part, kind, "output", module, untouched=(*beside, *past))
        for (name, module), past in zip(modules, upto, strict=True)
    ]


def _read(network: nn.Module) -> tuple[str, ...]:
    """Entries of the batch that the forward pass reads, `counts` among them where it does more than name a type."""
    needs = tuple(network.needs)  # type: ignore[arg-type]
    only_maps = isinstance(network, ResNet | D4CNN) and not {*network.channels} - {"residual", "significance"}
    return tuple(name for name in needs if name != "counts" or not only_maps)


def _of_pinn(network: D4LensPINN | D4LensPINNPublished) -> list[Layer]:
    if network.unet is None:
        return _of_head(network, "plain", ())
    fields: Literal["regular", "plain"] = "regular" if network.unet.layers.regular else "plain"
    unet = [
        Layer(f"unet.{name}", "unet", "scalar", "input", "unet", channels=(i, i + 1))
        for i, name in enumerate(network.inputs)
    ]
    parts = network.unet
    blocks = [("lift", "norm"), *((f"down.{i}",) * 2 for i in range(len(parts.down))), ("floor", "floor")]
    blocks += [(f"up.{i}",) * 2 for i in reversed(range(len(parts.up)))]  # the coarsest is met first
    unet += _chain("unet", fields, [(f"unet.{name}", f"unet.{module}") for name, module in blocks], ("unet.lift",))
    whole_unet = (*unet[-1].untouched, "unet.project")
    drawn: Literal["scalar", "plain"] = "scalar" if fields == "regular" else "plain"
    physics = [Layer("convergence", "physics", drawn, "output", "unet.project", channels=(0, 1), untouched=whole_unet)]
    beside_engine = ("unet", "invariants") if _has(network, "invariants") else ("unet",)
    if network.engine is not None:
        vector: Literal["vector", "plain"] = "vector" if fields == "regular" else "plain"
        physics += [
            Layer("deflection", "physics", vector, "dict", "engine", "alpha", untouched=beside_engine),
            Layer("source", "physics", drawn, "dict", "engine", "source", untouched=beside_engine),
        ]
    beside_head = (*beside_engine, "engine") if network.engine is not None else beside_engine
    head = _of_head(network, fields, beside_head)
    branch = []
    if isinstance(network, D4LensPINN) and network.invariants is not None:
        beside = (*(name for name in beside_head if name != "invariants"), "head")
        summary: Literal["invariant", "plain"] = "invariant" if fields == "regular" else "plain"
        blocks = [(f"invariants.blocks.{i}",) * 2 for i in range(len(network.invariants.blocks))]
        branch = _chain("invariants", fields, blocks, (), beside)
        ends = [("invariants.summary", "invariants"), ("invariants.logits", "classify_invariants")]
        branch += _chain("invariants", summary, ends, (), beside)
    return [*unet, *physics, *head, *branch]


def _of_head(
    network: D4LensPINN | D4LensPINNPublished, fields: Literal["regular", "plain"], beside: tuple[str, ...]
) -> list[Layer]:
    head, names = [], network.head_channels
    for i, name in enumerate(names):
        own = "scalar" if fields == "regular" or name in network.inputs else "plain"
        head.append(_head_input(f"head.{name}", own, i, i + 1, beside))
    width = network.head.conv_stem.in_channels
    if width > len(names):
        head.append(_head_input("head.features", fields, len(names), width, beside))
    stages = [("stem", "bn1"), *((f"blocks.{i}",) * 2 for i in range(len(network.head.blocks))), ("final", "bn2")]
    stages.append(("logits", "classifier"))
    modules = [(f"head.{n}", f"head.{m}") for n, m in stages]
    return head + _chain("head", "plain", modules, ("head.conv_stem",), beside)


def _head_input(name: str, kind: Any, first: int, end: int, untouched: tuple[str, ...]) -> Layer:
    # A component of a vector is no scalar: the head that takes the two for maps of scalars breaks the symmetry there.
    kind = "plain" if name in ("head.alpha_x", "head.alpha_y") else kind
    return Layer(name, "head", kind, "input", "head", channels=(first, end), untouched=untouched)


def _has(network: nn.Module, name: str) -> bool:
    return getattr(network, name, None) is not None


def turned(layer: Layer, x: Tensor, g: int) -> Tensor:
    """Turn an activation as it should turn with the image; a plain map counts as scalars.

    Parameters
    ----------
    layer : Layer
        Whose activation it is.
    x : Tensor
        The activation (B, ...).
    g : int
        An element of D4, 0 to 7.

    Returns
    -------
    Tensor
        Of the same shape.
    """
    if layer.kind == "fit":
        return turned_fit(x, g)
    if x.ndim < 3:
        return x
    if layer.kind == "regular":
        from d4lens.models.equivariant import transform_fields  # escnn's convention; not needed to read a layer

        return transform_fields(x, g)
    if layer.kind == "vector":
        return torch.stack(d4.transform_vector(x[:, 0], x[:, 1], g), 1)
    return d4.transform(x, g)


def run_edited(
    network: nn.Module, batch: LensBatch, edits: Mapping[Layer, Edit], fixed: Mapping[str, Any] | None = None
) -> Tensor:
    """Run a network with layers replaced.

    Parameters
    ----------
    network : nn.Module
        A network that `layers_of` knows.
    batch : LensBatch
        B images as it reads them.
    edits : mapping
        By layer, what its activation is passed through.
    fixed : mapping, optional
        Outputs of modules, as `outputs` gives them, that need not be computed again.

    Returns
    -------
    Tensor
        Logits (B, 3).
    """
    with ExitStack() as stack:
        for name, value in (fixed or {}).items():
            stack.enter_context(_returning(network.get_submodule(name), value))
        for layer, edit in edits.items():
            if layer.place == "batch":
                batch = replace(batch, **{layer.key: edit(batch.need(layer.key))})
            else:
                handle = _hook(network.get_submodule(layer.module), layer, edit)
                stack.callback(handle.remove)
        logits: Tensor = network(batch)["logits"]
        return logits


def capture(
    network: nn.Module, batch: LensBatch, layers: Sequence[Layer], fixed: Mapping[str, Any] | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Run a network and keep the activations of some layers.

    Parameters
    ----------
    network : nn.Module
        The network.
    batch : LensBatch
        B images.
    layers : sequence of Layer
        Whose activations to keep.
    fixed : mapping, optional
        As for `run_edited`.

    Returns
    -------
    logits : Tensor
        (B, 3), in the order of CLASSES.
    activations : dict of str to Tensor
        A copy of each layer's activation, by its name.
    """
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Edit:
        def edit(x: Tensor) -> Tensor:
            found[name] = x.clone()
            return x

        return edit

    return run_edited(network, batch, {layer: keep(layer.name) for layer in layers}, fixed), found


def outputs(network: nn.Module, batch: LensBatch, layers: Sequence[Layer]) -> dict[str, Any]:
    """Record what the modules that some layer leaves untouched return, so that `run_edited` need not compute it again.

    Parameters
    ----------
    network : nn.Module
        The network.
    batch : LensBatch
        The images.
    layers : sequence of Layer
        The layers that are to be edited.

    Returns
    -------
    dict
        What each module returned, by name.
    """
    found: dict[str, Any] = {}
    with ExitStack() as stack:
        for name in {module for layer in layers for module in layer.untouched}:
            handle = network.get_submodule(name).register_forward_hook(
                lambda _, __, out, name=name: found.__setitem__(name, out)
            )
            stack.callback(handle.remove)
        network(batch)
    return found


def blended(donor: Tensor, mask: Tensor | None = None) -> Edit:
    """Make the edit that replaces an activation.

    A map larger than the image has a margin on all sides, which is not patched.

    Parameters
    ----------
    donor : Tensor
        What takes its place, of its shape.
    mask : Tensor, optional
        (B, n, n) bool: where it is replaced; None for everywhere.

    Returns
    -------
    callable
        The edit.
    """
    if mask is None:
        return lambda _: donor

    def edit(x: Tensor) -> Tensor:
        margin = (x.shape[-1] - mask.shape[-1]) // 2
        where = F.pad(mask, [margin] * 4) if margin else mask
        return torch.where(where if x.ndim == mask.ndim else where[:, None], donor, x)

    return edit


@contextmanager
def _returning(module: nn.Module, value: Any) -> Iterator[None]:
    # a dictionary is copied, since a network goes on filling in what its engine returned
    module.forward = lambda *_, **__: dict(value) if isinstance(value, dict) else value
    try:
        yield
    finally:
        del module.forward


def _hook(module: nn.Module, layer: Layer, edit: Edit) -> Any:
    if layer.place == "input":
        return module.register_forward_pre_hook(lambda _, args: (_edited(args[0], layer, edit), *args[1:]))
    if layer.place == "output":
        return module.register_forward_hook(lambda _, __, out: _edited(out, layer, edit))
    if layer.module == "engine":
        return module.register_forward_hook(lambda engine, args, out: _edited_lens(engine, args, out, layer, edit))
    return module.register_forward_hook(lambda _, __, out: {**out, layer.key: edit(out[layer.key])})


def _edited(x: Tensor, layer: Layer, edit: Edit) -> Tensor:
    if layer.channels is None:
        return edit(x)
    first, end = layer.channels
    part = x[:, first:end]
    new = edit(part)
    # In x's own layout: another one would change the last bits of what is computed from it.
    return x if new is part else x.clone().index_copy_(1, torch.arange(first, end, device=x.device), new.to(x.dtype))


def _edited_lens(
    engine: Any, args: tuple[Tensor, ...], out: dict[str, Tensor], layer: Layer, edit: Edit
) -> dict[str, Tensor]:
    """Replace the deflection or the source among the engine's fields and compute anew what follows from it."""
    alpha = torch.stack([out["alpha_x"], out["alpha_y"]], 1)
    old = alpha if layer.key == "alpha" else out["source"]
    new = edit(old)
    if new is old:
        return out
    out, half_width = dict(out), engine.source_half_width
    alpha = new if layer.key == "alpha" else alpha
    beta_x, beta_y = engine.x.to(alpha.dtype) - alpha[:, 0], engine.y.to(alpha.dtype) - alpha[:, 1]
    with unchecked():
        if layer.key == "alpha":
            out["alpha_x"], out["alpha_y"] = alpha.unbind(1)
            out["source"], out["coverage"] = to_source_plane(
                args[1].to(alpha.dtype), beta_x, beta_y, engine.source_pixels, half_width, min_coverage=_SEEN
            )
        else:
            out["source"] = new
        out["relensed"] = to_image_plane(out["source"], beta_x, beta_y, half_width)
    return out
