from functools import partial

import numpy as np
import torch

from recurra.core.conversion import Found, Source, rename
from recurra.core.errors import blaming
from recurra.core.evaluation import Method, score_files
from recurra.core.files import find_inputs, guard_inputs, open_output, result_names, writing
from recurra.core.foreign import read_foreign
from recurra.core.inference import Origin, Result, describe, each_file, kept, load, options_digest, share
from recurra.core.scores import Run, Scores
from recurra.toy.training import Smoother


def load_smoother(checkpoint):
    return load(Smoother, checkpoint, package="recurra.toy")


def read(path):
    with blaming(path):
        return torch.from_numpy(np.loadtxt(path, dtype=np.float32, ndmin=1))[None]


def smoothing(checkpoint, results):
    model = load_smoother(checkpoint)

    def work(path):
        with torch.no_grad(), writing(results[path]) as part:
            np.savetxt(part, model(read(path))[0].numpy(), header=str(Origin.of(path, model, {})))
        return Result(path, [results[path]], 1, "series")

    return work


def smooth_files(checkpoint, inputs, out, runs):
    files, model = find_inputs(inputs, [".txt"], leave_out=[out]), load_smoother(checkpoint)
    results = {path: out / f"{name}.txt" for path, name in result_names(files).items()}
    outputs = [results[path] for _, path in share(files, runs.shard)]
    guard_inputs(outputs, files)
    for output in [] if runs.resume else outputs:
        open_output(output, runs.overwrite)

    def earlier(path):
        made = {one: one.read_text().partition("\n")[0][2:] for one in [results[path]] if one.exists()}
        return Result(path, list(made), 1, "series") if kept(made, 1, Origin.of(path, model, {})) else None

    return each_file(files, partial(smoothing, checkpoint, results), out, runs, kept=earlier)


def scoring(checkpoint):
    methods = [Method("as_is", lambda x: x), Method("Smoother", load_smoother(checkpoint))]

    def score(path):
        series = read(path)
        metrics = {m.name: {"roughness": float(m(series).diff().square().mean())} for m in methods}
        return Scores(metrics, {m.name: m.seconds for m in methods}, 1)

    return score


def score(checkpoint, data, out, command, runs):
    model = load_smoother(checkpoint)
    report = command and {"command": command, "checkpoint": describe(model)}
    run = Run(out, "roughness", "series", options_digest(model, {}), runs=runs, report=report or None)
    return score_files(find_inputs(data, [".txt"]), partial(scoring, checkpoint), run)


def colleague(path, given):
    state = read_foreign(path)["weights"]
    weights = rename(state, ((r"gru\.(.*)", r"unit.\1"), (r"out\.(.*)", r"head.\1")))
    return Found(Smoother, {"hidden": state["out.weight"].shape[1]}, weights, {})


SOURCES = {"colleague": Source("https://example.org/smoother", "under MIT", colleague)}
