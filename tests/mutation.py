"""Wrong texts, made from the right ones."""

from collections.abc import Callable

Texts = dict[str, str]


def edit(file: str, old: str, new: str) -> Callable[[Texts], Texts]:
    """Replaces in one of the kernel's texts what must be there exactly once."""

    def edited(texts: Texts) -> Texts:
        if (found := texts[file].count(old)) != 1:
            raise LookupError(f"{file} has {old!r} {found} times; a mutant replaces what is there once.")
        return {**texts, file: texts[file].replace(old, new)}

    return edited
