"""Makes the table of a results file of gpu.py, in Markdown."""

HEADER = ("model", "side", "precision", "batch", "options", "images/s", "share of peak", "memory, GiB")
HEADER += ("ms by kernels", "loss", "plain model's loss")


def table(results: dict) -> str:
    """Returns one line per measured command; a row that failed has its error."""
    lines = [HEADER, ("---",) * 5 + ("---:",) * 3 + ("---",) + ("---:",) * 2]
    lines += [cells(row) for row in results["rows"]]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def cells(row: dict) -> tuple[str, ...]:
    script, *flags = row["command"]
    given = dict(flag.removeprefix("--").partition("=")[::2] for flag in flags)
    names = ("torch_compile", "max_autotune", "contiguous")
    options = ", ".join(f"`--{name}`" for name in names if name in given)
    groups = sorted(row.get("milliseconds", {}).items(), key=lambda item: -item[1])
    return (
        given.get("config_name", "vit-mae-tiny"),
        "Trainer" if script == "trainer_baseline.py" else "ours",
        given.get("mixed_precision", "no"),
        given["batch_size"],
        options or "eager",
        row["error"].replace("|", "/") if "error" in row else f"{row['images_per_second']:,.0f}",
        show(row.get("share_of_peak"), ".1%"),
        show(row.get("peak_memory_gib"), ".1f"),
        ", ".join(f"{name} {milliseconds:.1f}" for name, milliseconds in groups),
        show(row.get("loss"), ".5f"),
        show(row.get("plain_loss"), ".5f"),
    )


def show(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
