"""``python -m reference_train``."""

from reference_train.train import main

if __name__ == "__main__":
    main()
