"""Makes Triton's interpreter more than twice as fast, so that more tests can run in it. Changes no result."""

from __future__ import annotations

import gc
from typing import Any


def hasten() -> None:
    """Have the interpreter set itself up once per launch instead of once per call.

    It exchanges the functions of ``triton.language`` for its own when a kernel is launched, and again whenever a kernel
    calls another function, although they are exchanged by then: looking through the modules for them takes longer than
    the kernels. Here such a call takes the language as the launch has left it. What a launch does not touch, the part
    of ``triton.language`` that Triton's own library sees, is exchanged at the first call and never changed back, as
    without this.
    """
    import triton.language as tl
    from triton.runtime import interpreter

    gc.set_threshold(100_000)  # tiles are small objects by the million; at the usual 700 a tenth of the time goes there

    exchanged: set[str] = set()

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        module = self.fn.__module__
        if module not in exchanged and tl not in self.fn.__globals__.values():
            interpreter._patch_lang(self.fn)
            exchanged.add(module)
        try:
            return self.rewrite()(*args, **kwargs)
        except Exception as error:
            raise interpreter.InterpreterError(repr(error)) from error

    interpreter.InterpretedFunction.__call__ = call
