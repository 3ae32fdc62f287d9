"""A network of the user's own: a function that returns an `nn.Module`, named in the job file."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue
from torch import nn

from raynn.errors import JobError, did_you_mean
from raynn.preprocessing import InputSpec
from raynn.regularization import RegularizationSettings
from raynn.settings import Settings


class CustomSettings(Settings):
    """`target` is called as build(inputs, regularization, **settings) and returns the network."""

    kind: Literal["custom"]
    target: Annotated[
        str,
        Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$", description="package.module:function that builds the network"),
    ]
    settings: Annotated[dict[str, JsonValue], Field(description="its keyword arguments")] = Field(default_factory=dict)


def build(settings: CustomSettings, inputs: InputSpec, regularization: RegularizationSettings) -> nn.Module:
    """The network that the user's function returns for these inputs.

    Raises:
        JobError: the function cannot be imported, does not take these settings, or returns no module.
    """
    function = _imported(settings.target)
    try:
        inspect.signature(function).bind(inputs, regularization, **settings.settings)
    except TypeError as error:
        keys = list(inspect.signature(function).parameters)[2:]
        unknown = next((key for key in settings.settings if key not in keys), "")
        raise JobError(
            f"network.settings do not fit {settings.target}, which is called as build(inputs, regularization, "
            f"**settings): {error}.{did_you_mean(unknown, keys)} Its settings: {', '.join(keys) or 'none'}"
        ) from None
    network = function(inputs, regularization, **settings.settings)
    if not isinstance(network, nn.Module):
        raise JobError(
            f"network.target = {settings.target!r} returned a {type(network).__name__}; return a torch.nn.Module"
        )
    return network


def _imported(target: str) -> Callable[..., Any]:
    """The function that `target` names; modules of the current folder are found too."""
    module_name, _, name = target.partition(":")
    if os.getcwd() not in sys.path:  # a console script's path holds its own folder instead
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise JobError(
            f"network.target = {target!r} cannot be imported ({error}); run from the folder that holds "
            f"{module_name.partition('.')[0]}, or install the package, on every node"
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise JobError(
            f"network.target = {target!r}: {module_name} has no function {name!r}.{did_you_mean(name, functions)}"
        )
    return function
