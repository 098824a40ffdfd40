"""`python -m difixcli`, and so `accelerate launch -m difixcli finetune …`."""

from difixcli.cli import main

if __name__ == "__main__":
    main()
