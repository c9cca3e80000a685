"""Pictures to reporters."""

import sys
import types

from PIL import Image

from tgo_trl.trainer.trackers import log_picture


def test_pictures_go_to_the_reporters_that_the_run_reports_to(tmp_path, monkeypatch):
    path = tmp_path / "grid.png"
    Image.new("RGB", (2, 2), "red").save(path)
    logged = []
    for name in ("wandb", "trackio"):
        module = types.ModuleType(name)
        module.Image = lambda path, name=name: (name, path)
        module.log = logged.append
        monkeypatch.setitem(sys.modules, name, module)
    trainer = types.SimpleNamespace(
        callback_handler=types.SimpleNamespace(callbacks=[]), args=types.SimpleNamespace(report_to=["trackio"])
    )
    log_picture(trainer, "samples", path, 7)
    assert logged == [{"samples": ("trackio", str(path)), "train/global_step": 7}]
    trainer.args.report_to = ["wandb", "tensorboard"]
    log_picture(trainer, "samples", path, 8)
    assert logged[1:] == [{"samples": ("wandb", str(path)), "train/global_step": 8}]
