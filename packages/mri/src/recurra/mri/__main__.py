"""`python -m recurra.mri`, also under torchrun."""

from recurra.mri.verbs import main

if __name__ == "__main__":
    main()
