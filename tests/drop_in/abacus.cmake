# A backend that cannot be built here.
sl_backend_missing("no \"abacus\" was found when this was built; buy one, then build again")
