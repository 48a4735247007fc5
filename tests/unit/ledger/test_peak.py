"""MFU from published peaks."""

import pytest
import torch
from small_runs import config_for, trainer_for

from lowrise.distributed import World
from lowrise.ledger.peak import peak_flops, utilization
from lowrise.train.records import device_record


@pytest.mark.parametrize(
    ("name", "bfloat16"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("something else", None),
    ],
)
def test_the_peak_of_a_device(name, bfloat16):
    assert peak_flops(name, "bfloat16") == bfloat16
    float32 = peak_flops(name, "float32")
    assert (float32 is None) if bfloat16 is None else (float32 == pytest.approx(bfloat16 / 2, rel=0.02))


def test_half_of_two_devices():
    assert utilization(989e12, 1.0, 2, "NVIDIA H100 80GB HBM3", "bfloat16") == 0.5
    assert utilization(1.0, 1.0, 1, "cpu", "float32") is None


def test_a_logged_update_on_a_gpu(text_folder, tmp_path, monkeypatch):
    """Without one: what torch would say is played."""
    trainer = trainer_for(config_for(text_folder, "adamw"), tmp_path)
    step = trainer.train_step
    step.device = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 5)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 7)
    record = device_record(step, 0.5, World())
    expected = trainer.plan.flops_per_step / (0.5 * 989e12)  # auto is bfloat16 on a GPU
    assert record == {"peak_memory_bytes": 7, "memory_bytes": 5, "mfu": expected}
