from sdpl.cli import main

main(prog_name="sdpl")
