"""What can be said of options before anything is started with them."""

from __future__ import annotations

from llamastream.engine.attributes import translate
from llamastream.engine.flags import check_given
from llamastream.engine.options import EngineOptions
from llamastream.engine.probe import probe
from llamastream.engine.startup import choose


def check_extra_args(options: EngineOptions) -> None:
    """Look whether the engine that these options choose takes their `extra_args`. It starts nothing, but an executable
    is asked for its `--help`.

    Raises:
        UnsupportedFlagError: it does not know a flag. SettingError: a value is missing or wrong.
        EngineMissingError: there is no such engine.
    """
    if not options.extra_args:
        return
    binary = choose(options)
    if binary is None:
        translate(options.extra_args)
    else:
        check_given(options.extra_args, probe(binary.path).help())
