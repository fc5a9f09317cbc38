"""Any nn.Module: sites are its module paths; here a unit of a small network is read, ablated and differentiated."""

import torch

import glassworks as gw

torch.manual_seed(0)
x = torch.linspace(-2, 2, 200)[:, None]
module = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
for _ in range(300):
    optimizer.zero_grad()
    torch.nn.functional.mse_loss(module(x), x.sin()).backward()
    optimizer.step()

net = gw.wrap(module)
with net.trace(x) as t:
    hidden = net["1"].output
    output = net["2"].output
    t.backward(output.sum())
    weight = (hidden * hidden.grad).abs().mean(0).save()
print(f"error of the network: {torch.nn.functional.mse_loss(module(x), x.sin()).item():.5f}")
print("unit  |gradient x activation|  error without it")
for unit in range(8):
    with net.trace(x):
        net["1"].output[:, unit] = 0
        without = net["2"].output.save()
    error = torch.nn.functional.mse_loss(without.value, x.sin()).item()
    print(f"{unit:4}  {weight[unit].item():23.3f}  {error:16.5f}")
