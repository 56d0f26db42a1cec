"""``python -m ngvae_pyro`` is ``ngvae``."""

from ngvae_pyro.cli import main

if __name__ == "__main__":
    main()
