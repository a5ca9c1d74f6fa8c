"""A teacher whose weights rest in the host's memory and come to the student's device a layer at a time.

The model on the device is a frame: all modules and buffers, and weights of no numbers at all, so that one which was not fetched
is an error (with one on torch's meta device a product on a CPU is whatever lay in memory). Hooks fetch what a layer needs before
its forward pass and let go of it behind. Three kinds of weights travel on their own ways: the rows of the embedding are looked up
in the host's memory, the head comes as a whole when `VLM.head_weight` is read, and what lies between the layers (patches, norms,
mergers) stays while its tower runs.

A layer's weights lie side by side, so that they travel in one piece. On CUDA the next of a row of layers travels while one
computes: of each row no more than two are there at a time.

Under autocast linear layers round their weights to the narrow type anyway. Those are held rounded, half the bytes to travel, and
the numbers are the same to the last bit; a teacher that moves has its weights in full width besides.

Legend: V vocabulary, D width.
"""

from __future__ import annotations

import copy
import functools
import itertools
import mmap
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..vlm.backbone import PatchProjection
from ..vlm.lora import unlike
from .node_memory import node_memory
from .ranks import ALONE, Ranks

_ALIGNED = 64
_Key = tuple[int, torch.dtype]
"""A weight, by its place among the model's parameters, in a type."""


class Carrier(Protocol):
    """How bytes come to the device."""

    ahead: bool
    """Whether the next layer is sent for while one computes."""

    def begin(self, span: Tensor) -> Tensor:
        """Send for bytes (uint8) of the host's memory."""
        ...

    def ready(self) -> None:
        """From here on everything that was sent for may be used."""
        ...


class _Plain:
    """One after the other; nothing is copied where the device's memory is the host's."""

    ahead = False

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def begin(self, span: Tensor) -> Tensor:
        return span.to(self._device)

    def ready(self) -> None:
        return


class _Beside:
    """CUDA: copies run on a stream of their own. Memory is taken and given back on the stream that computes, and a copy waits for
    what was given to that stream before, so memory that it writes on is no longer read."""

    ahead = True

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)

    def begin(self, span: Tensor) -> Tensor:
        found = torch.empty_like(span, device=self._device)
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            found.copy_(span, non_blocking=True)
        return found

    def ready(self) -> None:
        torch.cuda.current_stream(self._device).wait_stream(self._stream)


@dataclass(frozen=True, eq=False)
class _Place:
    """Where a weight is in the frame, and in the bytes of its unit."""

    owner: nn.Module
    name: str
    blank: nn.Parameter
    key: _Key
    shape: torch.Size

    @property
    def size(self) -> int:
        return self.shape.numel() * self.key[1].itemsize

    def cut(self, span: Tensor, start: int) -> Tensor:
        return span[start : start + self.size].view(self.key[1]).view(self.shape)


@dataclass(eq=False)
class _Unit:
    """A module that is called as a whole, with the weights that come and go with it: a layer, before the layer ``after`` it, or a
    tower with what its layers leave."""

    module: nn.Module
    places: list[_Place]
    after: _Unit | None = None
    is_tower: bool = False


class Streamed:
    """A model in the host's memory. It has what `vlm.backbone` asks of a model, and no more: it scores, and does not sample.

    Ranks of one machine hold one copy. ``narrow`` is the type of the arithmetic where it is narrower than the weights (autocast).
    ``moves``: the weights will change, and are kept in full width. Every rank must make it, and call what writes.
    """

    def __init__(
        self,
        model: Any,
        device: torch.device,
        *,
        moves: bool,
        narrow: torch.dtype | None = None,
        ranks: Ranks = ALONE,
        carrier: Carrier | None = None,
    ) -> None:
        source: list[Tensor] = list(model.parameters())
        blanks = [nn.Parameter(torch.empty(0, dtype=one.dtype, device=device), requires_grad=False) for one in source]
        memo: dict[int, Any] = {id(one): blank for one, blank in zip(source, blanks, strict=True)}
        self._frame: Any = copy.deepcopy(model, memo).eval()
        for module in self._frame.modules():
            for name, buffer in module._buffers.items():
                module._buffers[name] = None if buffer is None else buffer.to(device)
        self.config, self.device, self.dtype = self._frame.config, device, source[0].dtype
        self._blanks, self._place_of = blanks, {id(blank): place for place, blank in enumerate(blanks)}
        self._shapes = [one.shape for one in source]
        self._narrow = narrow
        self._carrier: Carrier = carrier or (_Beside(device) if device.type == "cuda" else _Plain(device))
        self._sent: dict[_Unit, Tensor] = {}
        self._rows = self._place(self._frame.get_input_embeddings(), "weight")
        self._head = self._place(self._frame.get_output_embeddings(), "weight")
        self._units = self._made_units()
        self._at: dict[_Key, int] = {}
        size = self._laid_out(moves)
        memory, self._mates = node_memory(size, ranks)
        self._bytes = torch.frombuffer(memory, dtype=torch.uint8)
        # a storage for each, not a view of all: what is saved of one is this one
        self._held = {
            (place, kind): torch.frombuffer(memory, dtype=kind, count=shape.numel(), offset=at).view(shape)
            for (place, kind), at in self._at.items()
            for shape in (self._shapes[place],)
        }
        if device.type == "cuda":
            _pin(self, memory, self._bytes)
        with self._mates.writing():
            for place in self._mates.mine(len(source)):
                self._write(place, source[place].detach())
        me = weakref.proxy(self)  # no circle: gigabytes go when the run lets go of its teacher, not when Python looks for circles
        for unit in self._units:
            unit.module.register_forward_pre_hook(functools.partial(_fetch, me, unit))
            unit.module.register_forward_hook(functools.partial(_drop, me, unit), always_call=True)

    # ---- what is where ------------------------------------------------------------------------------------------------------

    def _place(self, owner: nn.Module, name: str) -> _Place:
        blank = owner._parameters[name]
        assert blank is not None
        linear = type(owner) in (nn.Linear, PatchProjection) and blank.dtype == torch.float32
        kind = self._narrow if self._narrow is not None and linear else blank.dtype
        place = self._place_of[id(blank)]
        return _Place(owner, name, blank, (place, kind), self._shapes[place])

    def _made_units(self) -> list[_Unit]:
        """Layers, then the towers that hold them with what is left. Raises `ValueError` for a weight that nobody would fetch."""
        body = self._frame.base_model
        taken = {id(self._rows.blank), id(self._head.blank)}
        units: list[_Unit] = []

        def unit(module: nn.Module, is_tower: bool = False) -> _Unit:
            parts = [(owner, name, one) for owner in module.modules() for name, one in owner._parameters.items()]
            owned = [(owner, name, one) for owner, name, one in parts if one is not None]
            places = [self._place(owner, name) for owner, name, one in owned if id(one) not in taken]
            taken.update(id(one) for _, _, one in owned)
            units.append(_Unit(module, places, is_tower=is_tower))
            return units[-1]

        for layers in _lists(body):
            made = [unit(layer) for layer in layers]
            for one, after in itertools.pairwise(made):
                one.after = after
        for tower in body.children():
            unit(tower, is_tower=True)
        lost = [name for name, one in self._frame.named_parameters() if id(one) not in taken]
        if lost:
            raise ValueError(f"teacher.offload: {', '.join(lost[:3])} of this model belong to no tower; use offload: none")
        return units

    def _laid_out(self, moves: bool) -> int:
        """Give every weight its bytes; how many there are."""
        size = 0
        wanted = [place.key for unit in self._units for place in unit.places] + [self._head.key, self._rows.key]
        wanted += [(place, blank.dtype) for place, blank in enumerate(self._blanks)] if moves else []
        for key in dict.fromkeys(wanted):
            self._at[key] = size
            size += -(-self._shapes[key[0]].numel() * key[1].itemsize // _ALIGNED) * _ALIGNED
        return size

    # ---- coming and going -----------------------------------------------------------------------------------------------------

    def _begin(self, places: Sequence[_Place]) -> Tensor:
        last = places[-1]
        return self._carrier.begin(self._bytes[self._at[places[0].key] : self._at[last.key] + last.size])

    def fetch(self, unit: _Unit) -> None:
        """Before the unit's forward pass."""
        if unit.places:
            span = self._sent.pop(unit) if unit in self._sent else self._begin(unit.places)
            self._carrier.ready()
            for place in unit.places:
                found: Any = place.cut(span, self._at[place.key] - self._at[unit.places[0].key])
                place.owner._parameters[place.name] = found
        if self._carrier.ahead and unit.after is not None:
            self._sent[unit.after] = self._begin(unit.after.places)

    def drop(self, unit: _Unit) -> None:
        """Behind it, also where it has failed."""
        for place in unit.places:
            place.owner._parameters[place.name] = place.blank
        if unit.is_tower and self._sent:  # it has failed, and what was sent for is not what comes next
            self._carrier.ready()
            self._sent.clear()

    def get_image_features(self, *args: Any, **kwargs: Any) -> Any:
        return self._frame.get_image_features(*args, **kwargs)

    def get_decoder(self) -> Any:
        return self._frame.get_decoder()

    def get_input_embeddings(self) -> Callable[[Tensor], Tensor]:
        """A call gives the rows ``[..., D]`` of ids."""
        weight_VD = self._held[self._rows.key]
        return lambda ids: F.embedding(ids.to(weight_VD.device), weight_VD).to(self.device)

    def get_output_embeddings(self) -> _Head:
        return _Head(self._whole_head)

    def _whole_head(self) -> Tensor:
        span = self._begin([self._head])
        self._carrier.ready()
        return self._head.cut(span, 0)

    @property
    def num_bytes(self) -> int:
        """What it holds of the host's memory, together with the other ranks of its machine."""
        return self._bytes.numel()

    # ---- the weights ----------------------------------------------------------------------------------------------------------

    def modules(self) -> Iterator[nn.Module]:
        return iter(self._frame.modules())

    def parameters(self) -> Iterator[Tensor]:
        """The weights in the host's memory, in the order of the model's; in full width of a teacher that moves."""
        return (self._held[place, blank.dtype] for place, blank in enumerate(self._blanks))

    def change(self, others: Sequence[Tensor], how: Callable[[Tensor, Tensor], object]) -> None:
        """``how(mine, other)`` for every weight and its counterpart, which comes to the host one at a time. Ranks of a machine
        share the work; all ranks must call it."""
        mine = list(self.parameters())
        if len(mine) != len(others):
            raise ValueError(f"teacher: {len(mine)} weights cannot follow {len(others)}; they are of different models")
        with self._mates.writing():
            for place in self._mates.mine(len(mine)):
                how(mine[place], others[place].detach().to(mine[place].device))
                self._write(place, mine[place])

    def _write(self, place: int, value: Tensor) -> None:
        for kind in (self._blanks[place].dtype, self._narrow):
            held = None if kind is None else self._held.get((place, kind))
            if held is not None and held is not value:
                held.copy_(value)

    def state_dict(self) -> dict[str, Tensor]:
        """That of the model, whichever way it is held; of a teacher that moves."""
        named = self._frame.state_dict(keep_vars=True)
        return {
            name: self._held[place, one.dtype] if (place := self._place_of.get(id(one))) is not None else one
            for name, one in named.items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Raises `ValueError` for the state of another model."""
        own = self.state_dict()
        odd = unlike(own, state)
        if odd:
            raise ValueError(f"teacher: saved of another model ({len(odd)} weights differ, such as {odd[0]})")
        first = {id(one): name for name, one in reversed(own.items())}
        self.change([state[first[id(one)]] for one in self.parameters()], Tensor.copy_)


@dataclass(frozen=True)
class _Head:
    """An output head of which the weight ``[V, D]`` comes each time it is asked for, and goes when it is let go of."""

    fetch: Callable[[], Tensor]

    @property
    def weight(self) -> Tensor:
        return self.fetch()


def _fetch(streamed: Streamed, unit: _Unit, module: nn.Module, arguments: Any) -> None:
    streamed.fetch(unit)


def _drop(streamed: Streamed, unit: _Unit, module: nn.Module, arguments: Any, result: Any) -> None:
    streamed.drop(unit)


def _lists(module: nn.Module) -> Iterator[nn.ModuleList]:
    """The outermost lists of layers."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield child
        else:
            yield from _lists(child)


def _pin(owner: object, memory: mmap.mmap, whole: Tensor) -> None:
    """Keep pages where they are, so that a device reads them by itself; without it copies are slower and wait for the host."""
    cudart: Any = torch.cuda.cudart()
    error = int(cudart.cudaHostRegister(whole.data_ptr(), whole.numel(), 1))  # 1: for all devices
    if error:
        warnings.warn(
            f"teacher.offload: CUDA cannot pin {whole.numel() / 2**30:.1f} GiB of the host's memory (error {error}); scoring "
            "works, and is slower",
            stacklevel=3,
        )
        return
    # `memory` is held until then: what is not mapped any more cannot be unpinned
    weakref.finalize(owner, lambda address, kept: cudart.cudaHostUnregister(address), whole.data_ptr(), memory)
