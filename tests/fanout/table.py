"""What people are shown."""

from cases import Case, Result

HEAD = "| | last / T1 | bar | copies from the seed, or from storage | bar | holds | processors busy |\n|---|---|---|---|---|---|---|"


def row(case: Case, result: Result | None, unit_sec: float) -> str:
    """A line of the table; `result` is None where a case failed."""
    bar = case.bar + case.grace_sec / unit_sec
    if result is None:
        return f"| {case.what} | failed | {bar:.2f} | | | no | |"
    share = result.sec / unit_sec
    copies = "" if result.copies is None else f"{result.copies:.2f}"
    most = "" if case.most_copies is None else f"{case.most_copies:.2f}"
    verdict = "yes" if holds(case, result, unit_sec) else "no"
    return f"| {case.what} | {share:.3f} | {bar:.2f} | {copies} | {most} | {verdict} | {result.busy:.0%} |"


def holds(case: Case, result: Result, unit_sec: float) -> bool:
    is_fast = result.sec <= case.bar * unit_sec + case.grace_sec
    return is_fast and (case.most_copies is None or result.copies <= case.most_copies)
