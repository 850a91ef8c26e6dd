"""Files of a source that a preparation skips or cannot use, by kind, named in one message."""

from tinyimnet.errors import UserError

SHOWN = 5  # names per kind; the manifest has all names of skipped files


class Unusable(Exception):
    """A file that cannot be used: the kind of fault, and what is particular to this file."""

    def __init__(self, kind: str, detail: str = ""):
        super().__init__(kind, detail)
        self.kind, self.detail = kind, detail


class Findings(dict[str, list[str]]):
    """Names of files by kind, in the order of discovery; as text: '2 damaged (a.png, b.png); 1 empty (c.png)'."""

    def add(self, kind: str, name: str, detail: str = "") -> None:
        """Add the name of a file, or of a folder (with a slash at the end), and what is particular to it."""
        self.setdefault(kind, []).append(printable(f"{name}: {detail}" if detail else name))

    def add_once(self, kind: str, name: str) -> None:
        """Add a name unless it was added last, as the folder of many files that are listed in order."""
        if self.get(kind, [])[-1:] != [printable(name)]:
            self.add(kind, name)

    def __str__(self) -> str:
        return "; ".join(f"{len(names):,} {kind} ({shortened(names)})" for kind, names in self.items())


def shortened(names: list[str]) -> str:
    """The first few of many names, and the number of others."""
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest:,} more" if rest > 0 else "")


def printable(name: str) -> str:
    """A file name on one line; bytes that are not UTF-8 and control characters are escaped."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in name)


def settle(source: object, problems: Findings, skipped: Findings, *, strict: bool, way_out: str = "") -> None:
    """Refuse a source that has problems, or with `strict` one that has skipped files.

    Raises:
        UserError: it names all problems and all skipped files.
    """
    also = f" (not used either: {skipped})" if skipped else ""
    if problems:
        raise UserError(
            f"{source} has files that cannot be used: {problems}{also}; correct these, or move them away{way_out}."
        )
    if strict and skipped:
        raise UserError(f"{source} has files that are not used: {skipped}; move them away, or omit --strict.")
