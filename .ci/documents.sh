#!/usr/bin/env bash
# Installs what the tests of the report, of the LaTeX tables and of a store on exFAT need, where it is missing (Debian or Ubuntu, root).
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive
missing=()
command -v chromium >/dev/null || command -v google-chrome >/dev/null || missing+=(chromium)
command -v pdflatex >/dev/null || missing+=(texlive-latex-recommended)  # pdflatex, booktabs, longtable, graphicx
command -v ssconvert >/dev/null || missing+=(gnumeric)  # a real spreadsheet for our CSVs
command -v pdftotext >/dev/null || missing+=(poppler-utils)
command -v mount.exfat-fuse >/dev/null || missing+=(exfat-fuse exfatprogs)
[ ${#missing[@]} -eq 0 ] && exit 0
apt-get update -q
apt-get install -y -q --no-install-recommends "${missing[@]}"
