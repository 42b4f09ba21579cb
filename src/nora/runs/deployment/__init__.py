"""The two hosts an adapter is deployed on: a text model under PEFT, a UNet under diffusers."""
