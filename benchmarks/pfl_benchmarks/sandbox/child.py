"""What the confined child does: takes limits, gives up everything else, runs the program that stands on its input.

Run as a file by a bare interpreter. Input: a line with the word to be said at the end, a line with seconds and bytes,
then the program. Output: that word when the program ran to its end; `confined:` and a reason when it was not started.
"""

import os
import resource
import sys


def main() -> None:
    word, limits, text = sys.stdin.read().split("\n", 2)
    seconds, memory = (int(part) for part in limits.split())
    out = os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    try:
        sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
        from filter import confine  # type: ignore[import-not-found]  # beside this file

        sys.path.pop(0)
        for what, amount in (
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_FSIZE, 0),
            (resource.RLIMIT_NPROC, 0),
            (resource.RLIMIT_NOFILE, 64),
            (resource.RLIMIT_CPU, seconds),
            (resource.RLIMIT_AS, memory),
        ):
            resource.setrlimit(what, (amount, amount))
        code = compile(text, "<answer>", "exec", dont_inherit=True)
        confine()
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return  # no program
    except OSError as error:
        os.write(out, f"confined: {error}".encode())
        return
    try:
        exec(code, {"__name__": "__main__"})
    except BaseException:  # whatever it is, the program did not come to its end
        os._exit(1)
    os.write(out, word.encode())
    os._exit(0)


if __name__ == "__main__":
    main()
