"""`lowrise inspect`: read, measure, show, write."""

from __future__ import annotations

from lowrise.audit.measure import audit
from lowrise.audit.options import InspectOptions
from lowrise.audit.page import page
from lowrise.audit.show import show
from lowrise.audit.source import open_source
from lowrise.audit.summary import document
from lowrise.console import Console
from lowrise.errors import UsageError
from lowrise.files import strict_json, write_whole


def inspect_folder(options: InspectOptions, console: Console, notices: Console) -> None:
    """Audit the folder and tell it on `console`; what comes up on the way goes to `notices`."""
    options.check()
    folder = options.folder.expanduser()
    source = open_source(folder, options.step, notices)
    matrices = audit(source.model, options.energy)
    if not matrices:
        raise UsageError(f"{folder} has no matrix besides embeddings and head: there is nothing to audit.")
    if options.out is not None:
        write_whole(options.out.expanduser(), page(folder, source, matrices, options.energy))
    if options.json:
        print(strict_json(document(folder, source, matrices, options.energy)))
        return
    show(folder, source, matrices, options.energy, console)
    if options.out is not None:
        console.print(f"Page: {options.out}", soft_wrap=True)
