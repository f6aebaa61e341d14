"""The same training as one site of a federation: FLARE starts it at each site. SITES_DATA is set by each hospital itself."""

import json
import os
from pathlib import Path

import numpy as np
import nvflare.client as flare
import torch
from PIL import Image
from torch import nn


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(16 * 16, 64), nn.ReLU(), nn.Linear(64, 6))


def read(folder, part):
    items = json.loads((folder / "datalist.json").read_text())[part]
    pictures = [Image.open(folder / item["image"]).convert("L").resize((16, 16)) for item in items]
    images = torch.tensor(np.stack([np.asarray(picture) for picture in pictures]) / 255, dtype=torch.float32)
    return images, torch.tensor([item["label"] for item in items])


def accuracy(model, images, labels):
    with torch.no_grad():
        return (model(images).argmax(dim=1) == labels).float().mean().item()


def main():
    flare.init()
    folder = Path(os.environ["SITES_DATA"], flare.get_site_name())
    images, labels = read(folder, "training")
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    while flare.is_running():
        received = flare.receive()
        model.load_state_dict(received.params)
        metrics = {"val_accuracy": accuracy(model, *read(folder, "validation"))}
        for batch in torch.randperm(len(images)).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
        samples = {"NUM_STEPS_CURRENT_ROUND": len(images)}
        flare.send(flare.FLModel(params=model.state_dict(), metrics=metrics, meta=samples))


if __name__ == "__main__":
    main()
