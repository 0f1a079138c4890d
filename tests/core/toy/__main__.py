from recurra.toy.verbs import main

main()
