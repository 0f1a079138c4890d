"""`python -m recurra.forecast`, also under torchrun."""

from recurra.forecast.verbs import main

if __name__ == "__main__":
    main()
