"""`vitlet bench`: honest figures, each configuration in a fresh process."""

from __future__ import annotations

import json
import shutil

import pytest

from vitlet.apps import bench_run
from vitlet.apps.bench_child import peak_rss


@pytest.fixture(scope="module")
def figures(toy_bundle, tmp_path_factory):
    """One run of every engine, drawn."""
    jobs = bench_run.plan(toy_bundle, None, None, [1, 2], None, seed=0)
    ticks = []
    results = bench_run.measure(
        jobs, warmup=2, iters=25, seconds=0, cold=True, advance=lambda: ticks.append(1)
    )
    return jobs, results, ticks


def test_every_engine_that_runs_here_is_measured(figures):
    jobs, results, _ = figures
    assert [(job.engine, job.threads, job.batch) for job in jobs] == [
        ("onnxruntime", 1, 1), ("tvm", 1, 1), ("onnxruntime", 2, 1), ("tvm", 2, 1),
    ]  # fmt: skip
    assert [result.job for result in results] == jobs


def test_the_checking_engine_is_measured_where_it_is_asked_for(toy_bundle):
    (job,) = bench_run.plan(toy_bundle, ["coreml"], None, [1], None, seed=0)
    (result,) = bench_run.measure(
        [job], warmup=0, iters=2, seconds=0, cold=False, advance=lambda: None
    )
    assert result.info["engine"] == "coreml" and len(result.times_ms) == 2


def test_exactly_the_runs_asked_for_are_timed_in_turns(figures):
    _, results, ticks = figures
    assert [len(result.times_ms) for result in results] == [25] * 4
    assert len(ticks) == 4 * bench_run.ROUNDS


def test_figures_make_sense(figures):
    for result in figures[1]:
        data = result.to_json([50, 90, 99])
        assert 0 < data["min_ms"] <= data["p50_ms"] <= data["p90_ms"] <= data["p99_ms"]
        assert data["load_ms"] > 0 and data["cold_load_ms"] > 0 and data["first_ms"] > 0
        assert data["per_second"] == pytest.approx(1e3 * result.job.batch / data["mean_ms"])


def test_memory_is_the_childs_own_and_not_this_process_peak(figures):
    ballast = bytearray(400_000_000)
    ballast[::4096] = b"x" * len(ballast[::4096])
    assert peak_rss() > 400e6  # this process is large now; a child that is started must not show it
    job = figures[0][0]
    (result,) = bench_run.measure(
        [job], warmup=0, iters=1, seconds=0, cold=False, advance=lambda: None
    )
    del ballast
    assert 10e6 < result.start_rss < 100e6
    assert result.start_rss < result.peak_rss < 300e6


def test_engines_are_compared_with_each_other(figures):
    assert min(bench_run.agreement(figures[1])) > 0.9999


def test_a_fast_and_wrong_engine_is_found_out(figures):
    results = list(figures[1])
    wrong = bench_run.Measured(**{**vars(results[1]), "output": [-v for v in results[1].output]})
    assert bench_run.agreement([results[0], wrong])[1] < 0


def test_the_table_fits_and_the_json_is_complete(cli, toy_bundle, tmp_path):
    pytest.importorskip("matplotlib", reason="the plot is part of the [report] extra")
    plot = tmp_path / "b.png"
    ran = cli("bench", toy_bundle, "--iters", 3, "--warmup", 1, "--plot", plot, "--threads", "1,2")
    assert ran.code == 0
    assert max(map(len, ran.out.splitlines())) <= 80
    assert len(ran.out.splitlines()) == 5
    assert plot.read_bytes().startswith(b"\x89PNG")
    ran = cli(
        "bench", toy_bundle, "--iters", 3, "--engine", "ort", "--percentiles", "5,95", "--json"
    )
    (row,) = json.loads(ran.out)["results"]
    assert row["engine"] == "onnxruntime" and {"p5_ms", "p95_ms", "peak_rss"} <= set(row)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--iters", "5", "--duration", "1s"], "exclude each other"),
        (["--duration", "soon"], "--duration takes a time"),
        (["--threads", "0"], "--threads takes whole numbers"),
        (["--percentiles", "101"], "--percentiles takes numbers from 0 to 100"),
        (["--engine", "tensorflow"], "unknown engine"),
        (["--graph", "audio"], "no graph 'audio'"),
        (["--plot", "b.gif"], "--plot must end in"),
        (["--batch", "8"], "model.onnx was compiled for batch 1, not 8"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_measured(cli, toy_bundle, options, words):
    ran = cli("bench", toy_bundle, *options)
    assert (ran.code, ran.out) == (2, "")
    assert words in ran.err and len(ran.err.splitlines()) == 1


def test_a_bundle_without_an_engine_to_measure_is_unsupported(cli, toy_bundle, tmp_path):
    bundle = tmp_path / "phone.vitlet"
    shutil.copytree(toy_bundle, bundle)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["artifacts"] = [a for a in manifest["artifacts"] if a["target"] == "coreml"]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    ran = cli("bench", bundle)
    assert ran.code == 3 and "Core ML" in ran.err and '"coreml"' in ran.err


def test_what_goes_wrong_in_the_child_is_told_as_if_it_were_here(toy_bundle, tmp_path):
    job = bench_run.Job(tmp_path / "gone.vitlet", "onnxruntime", "model", 1, 1)
    with pytest.raises(bench_run.VitletError, match=r"gone\.vitlet does not exist") as caught:
        bench_run.measure([job], warmup=0, iters=1, seconds=0, cold=False, advance=lambda: None)
    assert caught.value.exit_code == 6


def test_a_file_in_the_current_folder_cannot_shadow_a_module(toy_bundle, tmp_path, monkeypatch):
    (tmp_path / "numpy.py").write_text("raise SystemExit('hijacked')")
    monkeypatch.chdir(tmp_path)
    job = bench_run.Job(toy_bundle, "onnxruntime", "model", 1, 1)
    bench_run.measure([job], warmup=0, iters=1, seconds=0, cold=False, advance=lambda: None)


def test_the_layers_of_a_model_are_measured_for_its_mixtures(cli, tmp_path):
    file = tmp_path / "experts.json"
    ran = cli("bench", "vit_fashion", "--experts", str(file), "--duration", "1ms")
    assert ran.code == 0, ran.err
    found = json.loads(file.read_text())
    sizes = [(layer["in"], layer["out"], layer["tokens"]) for layer in found["layers"]]
    assert sizes == [(96, 288, 50), (96, 96, 50), (96, 384, 50), (384, 96, 50)]
    assert "dense share" in ran.out and f"--latency {file}" in ran.err
    for argv, words in (
        (("--experts", "e.json"), "one MODEL"),
        (("vit_fashion", "--experts", "e.json", "--threads", "1,2"), "one thread count"),
        (("vit_fashionable", "--experts", "e.json"), "vit_fashion"),
    ):
        refused = cli("bench", *argv)
        assert refused.code == 2 and words in refused.err
