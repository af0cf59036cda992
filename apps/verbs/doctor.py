"""`vitlet doctor`: what this machine can do, and what it would take to do the rest."""

from __future__ import annotations

from typing import Any

from vitlet.apps.options import Json, NoProgress, Quiet, Verbose
from vitlet.apps.output import Output, columns, facts, mark


def doctor(
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    no_progress: NoProgress = False,
) -> None:
    """Tell what can be exported, verified and run here."""
    from vitlet.apps import machine

    with Output(json, quiet, verbose, not no_progress) as out:
        report: dict[str, Any] = {
            "vitlet": machine.vitlet_facts(),
            "machine": machine.hardware(),
            "packages": machine.packages(),
            "targets": machine.targets(),
            "compilers": machine.compilers(),
            "dataset": machine.dataset(),
        }
        out.result(report, lambda: _show(out, report))
        missing = sorted({t["fix"] for t in report["targets"] if t["fix"]})
        out.next(*(missing or ["vitlet demo"]))


def _show(out: Output, report: dict[str, Any]) -> None:
    ours, host, data = report["vitlet"], report["machine"], report["dataset"]
    compilers = [f"{c['use']}: {c['found'] or 'none'}" for c in report["compilers"]]
    out.print(
        facts(
            [
                ("vitlet", f"{ours['version']} (Python {ours['python']})"),
                ("kernels", ours["kernels"]),
                ("system", host["system"]),
                ("processor", host["cpu"]),
                ("threads", host["threads"]),
                ("memory", host["memory"]),
                *(("compiler" if n == 0 else "", text) for n, text in enumerate(compilers)),
                ("dataset", data["found"] or f"not found: {data['fix']}"),
            ]
        )
    )
    out.print("")
    verbs = ("export", "verify", "run")
    rows = [
        (t["target"], *(mark(t[verb]["here"]) for verb in verbs), _reasons(t))
        for t in report["targets"]
    ]
    out.print(columns(("target", *verbs, "notes"), rows))
    out.print("")
    rows = [
        (p["name"], p["version"] or mark(False, "missing"), p["needs"], p["extra"], p["problem"])
        for p in report["packages"]
    ]
    out.print(columns(("package", "version", "needs", "extra", ""), rows))


def _reasons(target: dict[str, Any]) -> str:
    reasons = dict.fromkeys(target[verb]["why"] for verb in ("export", "verify", "run"))
    return "; ".join(reason for reason in reasons if reason)
