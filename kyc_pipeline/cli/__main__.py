"""`python -m kyc_pipeline.cli` is the command `kyc-pipeline`."""

from kyc_pipeline.cli import main

if __name__ == "__main__":
    main()
