"""A hospital's own training: plain PyTorch, one site. python alone.py FOLDER_OF_THE_SITE"""

import json
import sys
from pathlib import Path

import numpy as np
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
    folder = Path(sys.argv[1])
    images, labels = read(folder, "training")
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    for epoch in range(5):
        for batch in torch.randperm(len(images)).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
        print(f"epoch {epoch}: validation accuracy {accuracy(model, *read(folder, 'validation')):.3f}")


if __name__ == "__main__":
    main()
