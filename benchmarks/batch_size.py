"""Does the error rise at small batches, norm by norm? The same small run on drawn scenes at batch 1 to 16.

python benchmarks/batch_size.py OUT_DIR [SEEDS]

Writes OUT_DIR/batch_size.csv (one line per run; a run that is there is not repeated) and OUT_DIR/batch_size.png.
"""

from __future__ import annotations

import csv
import json
import statistics
import sys
import time
import warnings
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Trainer
from matplotlib.figure import Figure

from geonorm.cli import main as geonorm
from geonorm.data import InriaDataModule
from geonorm.data.drawn import write_inria_layout
from geonorm.norms import average_batches
from geonorm.norms.batch_average import layers_with_batch_statistics
from geonorm.tasks import SegmentationTask
from geonorm.tasks.checkpoint import factory_of, load_model

CONFIGS = Path(__file__).parent.parent / "configs"
RUN = CONFIGS / "run" / "batch_size.yaml"
CITIES = ("alder", "brack", "corvel")
BATCHES = (16, 8, 4, 2, 1)
NORMS: dict[str, list[str]] = {
    "BN": ["bn"],
    "GN": ["gn"],
    "IN": ["in"],
    "LN": ["ln"],
    "LCN": ["lcn"],
    "SN": ["sn"],
    "BRN": ["brn"],
    # A local member in a switchable pool.
    "SN with LCN": ["sn", "--model.norm.init_args.pool=[IN, LN, BN, LCN]", "--model.norm.init_args.window_px=31"],
}
FIELDS = ("norm", "batch", "seed", "iou", "accuracy", "iou_batch_average", "loss", "seconds")


def main(out_dir: str, seeds: str = "1") -> None:
    """Run what is missing, then write table and picture."""
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    root = folder / "AerialImageDataset"
    if not root.is_dir():
        write_inria_layout(folder, cities=CITIES, tiles_per_city=4, size_px=512, seed=0, progress=True)
    table = folder / "batch_size.csv"
    done = {(row["norm"], row["batch"], row["seed"]) for row in _read(table)}
    for seed in range(int(seeds)):
        for batch in BATCHES:
            for norm in NORMS:
                if (norm, str(batch), str(seed)) not in done:
                    _append(table, {"norm": norm, "batch": batch, "seed": seed, **_run(norm, batch, seed, folder)})
    rows = _read(table)
    _print_table(rows)
    _draw(rows, folder / "batch_size.png")


def _run(norm: str, batch: int, seed: int, folder: Path) -> dict[str, Any]:
    settings = yaml.safe_load(RUN.read_text(encoding="utf-8"))
    patches = settings["data"]["init_args"]["patches_per_epoch"]
    rate = settings["model"]["learning_rate"] * batch / settings["data"]["init_args"]["batch_size"]
    config, *more = NORMS[norm]
    if norm == "BRN":  # a tenth of the steps as Batch Norm, as in its paper; then open within four tenths
        steps = patches // batch
        more = [
            f"--model.norm.init_args.warmup_steps={steps // 10}",
            f"--model.norm.init_args.ramp_steps={steps * 4 // 10}",
        ]
    target = folder / "runs" / f"{norm.replace(' ', '_')}_{batch}_{seed}"
    words = [f"--config={RUN}", f"--config={CONFIGS / 'norm' / f'{config}.yaml'}", *more]
    words += [f"--data.root={folder}", f"--data.val_names=[{', '.join(f'{city}1' for city in CITIES)}]"]
    words += [f"--data.batch_size={batch}", f"--data.seed={seed}", f"--seed_everything={seed}"]
    words += [f"--model.learning_rate={rate}", f"--trainer.default_root_dir={target}"]
    began = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        code = geonorm(["fit", *words])
    if code:
        raise SystemExit(code)
    seconds = time.process_time() - began
    log = target / "lightning_logs" / "version_0"
    rows = list(csv.DictReader((log / "metrics.csv").open(encoding="utf-8")))
    scores = {
        name: [float(row[name]) for row in rows if row.get(name)] for name in ("val/iou", "val/accuracy", "train/loss")
    }
    return {
        "iou": scores["val/iou"][-1],
        "accuracy": scores["val/accuracy"][-1],
        "loss": statistics.mean(scores["train/loss"][-20:]),
        "iou_batch_average": _averaged(log / "checkpoints" / "last.ckpt", batch, seed, folder),
        "seconds": round(seconds, 1),
    }


def _averaged(checkpoint: Path, batch: int, seed: int, folder: Path) -> float | None:
    """Return the IoU with statistics averaged over training batches; None where the network keeps none."""
    trained = load_model(checkpoint)
    if not layers_with_batch_statistics(trained.network):
        return None
    data = InriaDataModule(
        folder,
        val_names=[f"{city}1" for city in CITIES],
        patch_px=64,
        batch_size=batch,
        patches_per_epoch=100 * batch,
        num_workers=0,
        seed=seed + 1000,
    )
    data.setup("fit")
    images = (data.on_after_batch_transfer(one, 0)["image"] for one in data.train_dataloader())
    average_batches(trained.network, islice(images, 100))
    task = SegmentationTask(factory_of(trained.norm_path), trained.spec, factory_of(trained.network_path))
    task.network.load_state_dict(trained.network.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
        return float(trainer.validate(task, data, verbose=False)[0]["val/iou"])


def _read(table: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(table.open(encoding="utf-8"))) if table.exists() else []


def _append(table: Path, row: dict[str, Any]) -> None:
    new = not table.exists()
    with table.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        if new:
            writer.writeheader()
        writer.writerow(row)
    print(row, flush=True)


def _of(rows: list[dict[str, str]], norm: str, batch: int, field: str = "iou") -> list[float]:
    return [float(row[field]) for row in rows if (row["norm"], row["batch"]) == (norm, str(batch)) and row[field]]


def _print_table(rows: list[dict[str, str]]) -> None:
    """Print IoU by norm and batch, the mean over seeds, as Markdown."""
    print(f"| norm | {' | '.join(f'batch {batch}' for batch in BATCHES)} |")
    print(f"|---|{'---|' * len(BATCHES)}")
    for norm in NORMS:
        for field, name in (("iou", norm), ("iou_batch_average", f"{norm}, batch average")):
            values = [_of(rows, norm, batch, field) for batch in BATCHES]
            if any(values):
                print(f"| {name} | {' | '.join(f'{statistics.mean(v):.3f}' if v else '-' for v in values)} |")


def _draw(rows: list[dict[str, str]], target: Path) -> None:
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axis = figure.subplots()
    for norm in NORMS:
        points = [(batch, _of(rows, norm, batch)) for batch in BATCHES]
        points = [(batch, values) for batch, values in points if values]
        axis.plot([b for b, _ in points], [100 * (1 - statistics.mean(v)) for _, v in points], marker="o", label=norm)
        for batch, values in points:
            axis.plot(
                [batch] * len(values), [100 * (1 - v) for v in values], ".", color=axis.lines[-1].get_color(), ms=3
            )
    axis.set_xscale("log", base=2)
    axis.invert_xaxis()
    axis.set_xticks(BATCHES, [str(batch) for batch in BATCHES])
    axis.set_xlabel("patches per step")
    axis.set_ylabel("error: 100 - IoU of buildings (%)")
    axis.set_title("Small batches: the same 3200 drawn patches, norm by norm")
    axis.legend(ncols=2)
    axis.grid(alpha=0.3)
    figure.savefig(target, dpi=120)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if len(sys.argv) < 2:
        print(json.dumps({"benchmark": "batch_size", "skipped": "give a folder to write to"}))
    else:
        main(*sys.argv[1:])
