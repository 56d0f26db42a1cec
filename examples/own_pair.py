"""A Pyro model and guide of one's own, trained by ngvae_pyro; --out saves and reads them again."""

import argparse
import warnings

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule, PyroParam
from torch import nn

import ngvae_pyro as ng

K, D = 5, 8


class Model(PyroModule):
    def __init__(self):
        super().__init__()
        self.decoder = nn.Sequential(nn.Linear(K, 32), nn.Tanh(), nn.Linear(32, D))
        self.scale = PyroParam(torch.tensor(0.5), constraint=dist.constraints.positive)

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(K), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), self.scale).to_event(1), obs=x)


class Guide(PyroModule):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(D, 32), nn.Tanh(), nn.Linear(32, 2 * K))

    def forward(self, x):
        loc, log_scale = self.encoder(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--out", help="a run folder")
    args = parser.parse_args()
    from own_pair import Guide, Model  # a run folder names them by their module

    Model.recorded = Guide.recorded = True  # their steps are all the same operations
    warnings.filterwarnings("ignore", "guide: Guide trains without moves")
    torch.manual_seed(0)
    rows = torch.randn(2000, 2) @ torch.randn(2, D) + 0.1 * torch.randn(2000, D)
    fit = ng.fit(Model(), Guide(), rows[:1800], steps=args.steps, progress=False)
    if args.out:
        fit.save(args.out, rows[1800:])
        fit, _ = ng.load_run(args.out)
    print(fit)
    print("precision of each latent:", *fit.latents(rows[1800:])["precision"].round(1))


if __name__ == "__main__":
    main()
