from sdpl.cli.entry import main

main()
