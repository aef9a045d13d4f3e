"""Rules about time: waiting for data, compiling again."""

from .evidence import Evidence
from .rule import Seen, rule

_SHORT = 1.0  # seconds of steps and data: a shorter run says nothing of where time goes


@rule(above=0.3)
def data_bound(evidence: Evidence) -> Seen | str:
    """A device that waits for its batches."""
    found = evidence.goodput
    if found is None:
        return "the run did not write down where its time went"
    if found.data + found.step < _SHORT:
        return (
            f"{found.data + found.step:.2g} s of steps and their batches; less than {_SHORT:g} s tell nothing"
        )
    share = found.data / (found.data + found.step)
    return Seen(
        share,
        f"{share:.0%} of the time of steps went into waiting for batches",
        "Read ahead (`fit(..., prefetch=2)`, Grain's workers), or do once what is done in every epoch",
    )


@rule(above=0.0)
def compiled_again(evidence: Evidence) -> Seen | str:
    """Steps that were compiled more than once."""
    many = len(evidence.recompiled)
    first = f": {evidence.recompiled[0]}" if many else ""
    return Seen(
        float(many),
        f"the step was compiled {many} times more than once{first}",
        "A callback that replaces a part of the state has to keep its dtypes, shapes and places",
    )
