"""``python -m ngvae_pyro`` runs ``ngvae``; if it cannot start, one line says what is missing."""

import sys

from ngvae_pyro.errors import UserError


def main() -> None:
    """Run the command line."""
    try:
        from ngvae_pyro import cli
    except UserError as error:
        print(f"ngvae: {error}", file=sys.stderr)
        sys.exit(2)
    cli.main()


if __name__ == "__main__":
    main()
