"""plan, launch, retry, status, cancel, logs, why: a target's runs on their way."""

from __future__ import annotations

from argparse import Namespace

from nora.verbs.asked import cluster_of, exec_settings, read_targets


def plan(options: Namespace) -> int:
    from nora.launch.commands import plan_command

    tables, settings, _ = read_targets(options.targets)
    return plan_command(tables, cluster_of(settings), as_json=options.json, sbatch=options.sbatch)


def launch(options: Namespace) -> int:
    """``launch``, and ``retry``, which is a launch of what failed."""
    from nora.launch.commands import launch_command

    tables, settings, exec_overrides = read_targets(options.targets)
    return launch_command(
        tables,
        cluster_of(settings),
        exec_overrides,
        dry_run=options.dry_run,
        retry=options.verb == "retry",
        canary=options.verb == "launch" and options.canary,
    )


def status(options: Namespace) -> int:
    from nora.launch.commands import status_command

    tables, settings, _ = read_targets(options.targets)
    return status_command(tables, cluster_of(settings), as_json=options.json, watch=options.watch)


def cancel(options: Namespace) -> int:
    from nora.launch.commands import cancel_command

    tables, settings, _ = read_targets(options.targets)
    return cancel_command(tables, cluster_of(settings), dry_run=options.dry_run)


def logs(options: Namespace) -> int:
    from nora.launch.commands import logs_command

    return logs_command(options.id, cluster_of(exec_settings(options.overrides)), as_json=options.json)


def why(options: Namespace) -> int:
    from nora.launch.commands import why_command

    return why_command(options.id, cluster_of(exec_settings(options.overrides)), as_json=options.json)
