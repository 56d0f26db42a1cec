"""Optuna (pip install optuna) looks for a width, and ends trials that are behind others early."""

import argparse

import torch

import ngvae_pyro as ng


def main(trials, steps, images):
    import optuna

    class Pruning(ng.Callback):
        def __init__(self, trial):
            self.trial = trial

        def on_look(self, view):
            self.trial.report(view.row["validation_loss"], view.row["step"])
            if self.trial.should_prune():
                raise optuna.TrialPruned

    def objective(trial):
        torch.manual_seed(0)
        model = ng.load_model("normal_gamma", data)
        width = trial.suggest_int("width", 16, 512, log=True)
        guide = ng.load_guide("relaxed", model, encoder={"width": width})
        how = {"validation": 0.1, "progress": False, "callbacks": [Pruning(trial)]}
        return ng.fit(model, guide, data, steps=steps, **how).history[-1]["validation_loss"]

    data = ng.sprites(images)
    study = optuna.create_study(pruner=optuna.pruners.MedianPruner(n_startup_trials=2))
    study.optimize(objective, n_trials=trials)
    print(f"best: {study.best_params}, validation loss {study.best_value:.1f} nats per image")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("trials", 20), ("steps", 4400), ("images", 22_000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    main(**vars(parser.parse_args()))
