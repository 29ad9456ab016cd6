"""How files and checkpoints name the state of a dictionary's parts: as its own, `scale` and not `units.input.scale`."""

from torch import Tensor, nn

PARTS = ("firing.", "units.input.")


def save_parts_as_own(dictionary: nn.Module) -> None:
    dictionary.register_state_dict_post_hook(named_as_own)
    dictionary.register_load_state_dict_pre_hook(named_by_part)


def named_as_own(dictionary: nn.Module, state: dict[str, Tensor], prefix: str, _: dict) -> None:
    """After `state_dict`: drops the prefixes of the parts. Order: parameters, parts, other buffers, whitening."""
    parameters = dict(dictionary.named_parameters())
    own = {name.removeprefix(prefix): state.pop(name) for name in list(state) if name.startswith(prefix)}

    def place(name: str) -> int:
        return 3 if "whitening" in name else 0 if name in parameters else 1 if name.startswith(PARTS) else 2

    for name in sorted(own, key=place):
        part = next((part for part in PARTS if name.startswith(part)), "")
        state[prefix + name.removeprefix(part)] = own[name]


def named_by_part(dictionary: nn.Module, state: dict[str, Tensor], prefix: str, *_) -> None:
    """Before `load_state_dict`: the inverse."""
    for part in PARTS:
        for name in dictionary.get_submodule(part[:-1]).state_dict():
            if prefix + name in state:
                state[f"{prefix}{part}{name}"] = state.pop(prefix + name)
